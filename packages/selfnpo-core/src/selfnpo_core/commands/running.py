"""How a command line runs and ends.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 128 + n ended by signal n. A message is one line on stderr.
"""

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence

import click

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.system.disk import is_disk_full

_UNINTERESTING = {
    "`torch_dtype` is deprecated": FutureWarning,  # the oldest diffusers that we take knows no other name
    r"`isinstance\(treespec, LeafSpec\)`": FutureWarning,  # torch's own, while it is imported
    "Already found a `peft_config`": UserWarning,  # two adapters are meant
    "TorchaoLoraLinear was instantiated": UserWarning,  # we never merge into 8 bits
}
"""Libraries' warnings that a user can do nothing about."""

_LONGEST = 2000
"""Characters of a message: an argument that it quotes may be far longer."""
_PATH_ERRORS = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError)
_PATH_NUMBERS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)


def run(command: click.Command, args: Sequence[str] | None = None, *, name: str) -> int:
    """Run a command line to its exit code, which is also what a command's function returned if that is a number."""
    _prepare_streams()
    _prepare_messages()
    try:
        given = sys.argv[1:] if args is None else list(args)
        words = [_text_of(word) for word in given]
        own = None if args is None and words == given else words  # of its own accord click does more on Windows
        result = command.main(args=own, prog_name=name, standalone_mode=False)
    except BaseException as error:
        code, message = describe_error(error, name)
        if message and os.environ.get("RANK", "0") == "0":  # of processes with the same mistake, one says so
            click.echo(message, err=True)
        return code
    return result if isinstance(result, int) else 0


def _prepare_streams() -> None:
    """What a terminal or pipe cannot show becomes `?`: hours of work do not end at an arrow."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _text_of(word: str) -> str:
    """An argument, also where the system is set up for ASCII and has taken UTF-8 for bytes that are no text.

    Raises `InputError` for what is no text: no file of ours could hold it.
    """
    try:
        word.encode()
        return word
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(word).decode()
    except UnicodeError:
        shown = word.encode("utf-8", "replace").decode()
        raise InputError(f"'{shown}' is not UTF-8: write it so, or rename the file") from None


def _prepare_messages() -> None:
    """Our own messages on stderr; of the libraries', errors only, unless their environment variables say otherwise."""
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    for message, category in _UNINTERESTING.items():
        warnings.filterwarnings("ignore", message=message, category=category)
    for library in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # they speak of kernels, and of each other
        logging.getLogger(library).setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    shown = _AboveBars()
    shown.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("selfnpo_"))
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[shown])


class _AboveBars(logging.Handler):
    """Messages on stderr, on lines of their own where a progress bar is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # as logging's own handlers: what cannot be said ends no run
            self.handleError(record)


def describe_error(error: BaseException, name: str) -> tuple[int, str]:
    """Exit code and message of an error; what is nobody's mistake but ours is raised again."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return 2, error.format_message()
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else name
        return 2, _line(name, f"{error.format_message()} (see {path} --help)")
    if isinstance(error, click.ClickException):
        return 2, _line(name, error.format_message())
    if isinstance(error, InputError):
        return 2, _line(name, error)
    if isinstance(error, RunError):
        return error.exit_code, _line(name, error)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return 130, _line(name, "interrupted")
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    if is_disk_full(error):
        return 1, _line(name, "the disk is full: free some space and repeat the command; what is written stays")
    if type(error).__name__ == "OutOfMemoryError":
        return 1, _line(name, "out of memory on the device: lower the batch size, or use a 16-bit dtype")
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8":
        told = f"{error.object} is no path where the system is set up for {error.encoding}"
        return 2, _line(name, f"{told}: set PYTHONUTF8=1, or a locale of UTF-8")
    if isinstance(error, OSError) and error.filename is not None:
        wrong = isinstance(error, _PATH_ERRORS) or error.errno in _PATH_NUMBERS
        return 2 if wrong else 1, _line(name, f"{error.filename}: {error.strerror}")
    raise error


def _line(name: str, message: object) -> str:
    words = " ".join(str(message).split())
    return f"{name}: error: " + (
        words if len(words) <= _LONGEST else f"{words[: _LONGEST // 2]} … {words[-_LONGEST // 2 :]}"
    )
