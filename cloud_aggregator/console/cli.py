"""The command ``cloud-aggregator user``: who may sign in to the console. There is no user before one is made here."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cloud_aggregator.adapters.accounts import Accounts, Role
from cloud_aggregator.adapters.database import Database
from cloud_aggregator.config import database_url, load_settings

user_app = typer.Typer(help="People who may sign in to the console.", no_args_is_help=True)

State = Annotated[Path, typer.Option("--state", help="Folder of the aggregator's state.")]
RoleOption = Annotated[Role, typer.Option("--role", help="A viewer looks; an operator changes what the fleet does.")]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]
DEFAULT_STATE = Path("aggregator-state")


@user_app.command("create")
def create_user(
    name: str, state: State = DEFAULT_STATE, role: RoleOption = "viewer", *, password_stdin: FromStdin = False
) -> None:
    """Let somebody sign in."""
    with _accounts(state) as accounts:
        accounts.create_user(name, role, _ask_password(from_stdin=password_stdin))
    print(f"{name}: may sign in as {role}")


@user_app.command("password")
def set_password(name: str, state: State = DEFAULT_STATE, *, password_stdin: FromStdin = False) -> None:
    """Give somebody another password; their sessions end."""
    with _accounts(state) as accounts:
        accounts.set_password(name, _ask_password(from_stdin=password_stdin))
    print(f"{name}: has another password")


@user_app.command("role")
def set_role(name: str, role: Annotated[Role, typer.Argument()], state: State = DEFAULT_STATE) -> None:
    """Give somebody another role; their sessions end."""
    with _accounts(state) as accounts:
        accounts.set_role(name, role)
    print(f"{name}: is {role} now")


@user_app.command("delete")
def delete_user(name: str, state: State = DEFAULT_STATE) -> None:
    """Let somebody sign in no more; their sessions end."""
    with _accounts(state) as accounts:
        accounts.delete_user(name)
    print(f"{name}: may not sign in any more")


@user_app.command("list")
def list_users(state: State = DEFAULT_STATE) -> None:
    """List who may sign in."""
    with _accounts(state) as accounts:
        for user in accounts.users():
            print(f"{user.name}  {user.role}")


@contextmanager
def _accounts(state: Path) -> Iterator[Accounts]:
    database = Database(database_url(state, load_settings(state)))
    try:
        yield Accounts(database.engine)
    finally:
        database.close()


def _ask_password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
