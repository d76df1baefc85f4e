"""Calling a command as the command line does, in this process."""

from absl import flags


def call(command, *words):
    """The command's result for these words."""
    values = flags.FlagValues()
    command.define(values)
    positional = values([command.name, *map(str, words)])[1:]
    return command.run(positional, values)
