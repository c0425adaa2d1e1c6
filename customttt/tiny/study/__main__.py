from ...errors import run_command
from .study import main

if __name__ == "__main__":
    run_command(main)
