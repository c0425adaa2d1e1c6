from ...errors import run_command
from .pretrain import main

if __name__ == "__main__":
    run_command(main)
