from ...errors import run
from .pretrain import main

if __name__ == "__main__":
    run(main)
