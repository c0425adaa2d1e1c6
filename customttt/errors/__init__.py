"""A user's mistake is one sentence (command.py), and a file is whole or not there (disk.py)."""

from .command import (STOPPED, UserError, command_parser, flag, full_memory, in_words,
                      run_command)
from .disk import check_writable, clear_leftovers, writing

__all__ = ["STOPPED", "UserError", "check_writable", "clear_leftovers", "command_parser",
           "flag", "full_memory", "in_words", "run_command", "writing"]
