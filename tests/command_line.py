"""Calling a command as the command line does, in this process."""

from tfaccel.cli._command import Parser


def call(command, *words):
    """The command's result for these words."""
    parser = Parser("tfaccel")
    command.define(parser)
    return command.run(parser.parse_args(list(map(str, words))))
