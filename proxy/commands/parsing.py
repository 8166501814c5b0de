"""How the command line is read: where a group alone means its first command, and where a mistake is one line."""

import sys
from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup
from typer.exceptions import TyperException

from proxy.commands.shown import one_line, say


class Whole(TyperGroup):
    """`infold`; what it cannot make sense of is told in one line, without a frame."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **more: Any
    ) -> Any:
        try:
            code = super().main(args, standalone_mode=False, **more)
        except TyperException as error:
            code = error.exit_code
            explain(error)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def explain(error: TyperException) -> None:
    message, where = one_line(error.format_message(), 500), getattr(error, "ctx", None)
    if not message:  # `infold` alone, whose help is printed already
        return
    if where is not None:
        told = message.rstrip(".")
        message = f"{told}{'' if told.endswith('?') else ';'} `{where.command_path} --help` shows what there is"
    say(message)


class Group(TyperGroup):
    """Commands under a name; the name alone means the first of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = [self.list_commands(ctx)[0], *args]
        return super().parse_args(ctx, args)
