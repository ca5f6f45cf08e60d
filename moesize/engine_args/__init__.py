"""`--engine-args "..."`: flags as the engine takes them, or a whole pasted serve command.

    words.py     text -> the program started, its words, variables, container
    table.py     data/flags/<engine>.json -> what each flag is and sets
    values.py    text of a value -> the value
    command.py   ServeCommand, and how it changes a Request

Nothing is executed, and no file that a flag names is opened: it is named in a warning.
"""

from moesize.engine_args.command import (
    ServeCommand,
    Setting,
    Typed,
    apply_command,
    apply_engine_arguments,
    bare_model,
    engine_settings,
    parse_serve_command,
    read_engine_words,
    settings_type,
)

__all__ = [
    "ServeCommand",
    "Setting",
    "Typed",
    "apply_command",
    "apply_engine_arguments",
    "bare_model",
    "engine_settings",
    "parse_serve_command",
    "read_engine_words",
    "settings_type",
]
