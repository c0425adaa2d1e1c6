from ...errors import run
from .study import main

if __name__ == "__main__":
    run(main)
