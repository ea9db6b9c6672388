"""Call the command line in this process, and expect one line of error."""

from click.testing import CliRunner, Result

import cli


def g2l(*arguments: object) -> Result:
    return CliRunner().invoke(cli.g2l, [str(argument) for argument in arguments])


def one_error(result: Result, match: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert match in line
