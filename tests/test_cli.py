"""The command line: what it lists, what it imports, and how it ends."""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import par_agent
from par_agent.cli import SUBCOMMANDS, main
from par_agent.cli.entry import run_command
from par_agent.utils.checked import option_hints

ROOT = Path(__file__).parents[1]


def test_help_lists_every_subcommand_with_its_summary(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in SUBCOMMANDS.items():
        assert [line for line in lines if line.split() == [*name.split(), *command.summary.split()]]


def test_no_subcommand_prints_the_usage_and_fails(capsys):
    assert main([]) == 2
    assert "usage: par-agent" in capsys.readouterr().out


def test_unknown_subcommand_fails_and_names_the_known_ones(capsys):
    assert main(["demo"]) == 2
    message = capsys.readouterr().err
    assert "'demo'" in message
    assert "demos" in message and "doctor" in message


def test_subcommands_of_two_words_are_listed_by_the_first(capsys):
    assert main(["visualize", "--help"]) == 0
    text = capsys.readouterr().out
    assert "visualize rollout" in text and "finetune" not in text
    assert main(["visualize", "rolout"]) == 2
    assert "'visualize rolout' is no subcommand; known: visualize rollout, visualize" in capsys.readouterr().err
    assert main(["finetun", "--task", "PushCube"]) == 2
    assert "unknown subcommand 'finetun'; known" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "message"), [("finetune", "the same command resumes"), ("doctor", "interrupted.\n")])
def test_ctrl_c_says_whether_the_command_resumes(name, message, capsys, monkeypatch):
    def interrupted(name, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("par_agent.cli.run_subcommand", interrupted)
    assert main([name]) == 130
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_explains_its_options(name, capsys):
    module, config = SUBCOMMANDS[name].load()
    assert config.__dataclass_params__.frozen and callable(module.main)
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option, hint in option_hints(config).items():
        names = [field.name for field in dataclasses.fields(hint)] if dataclasses.is_dataclass(hint) else [option]
        for shown in names:  # an option, or by position
            assert f"--{shown.replace('_', '-')}" in text or f" {shown.upper()}" in text


def test_bad_values_are_one_line_on_stderr_and_status_2(capsys):
    assert main(["demos", "--task", "PushSphere"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("par-agent: error: unknown task 'PushSphere'") and "PickCube" in output.err
    assert output.err.count("\n") == 1


def test_missing_option_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        main(["demos"])
    assert end.value.code == 2
    assert "--task" in capsys.readouterr().err


def test_version_is_the_installed_one(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["par-agent", importlib.metadata.version("par-agent")]


def test_importing_the_package_is_quick_and_imports_no_torch():
    program = (
        "import sys, time; start = time.process_time(); import par_agent, par_agent.cli; "
        "print(time.process_time() - start, 'torch' in sys.modules, 'sapien' in sys.modules, 'numpy' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert float(output[0]) < 0.2
    assert output[1:] == ["False", "False", "False"]


def test_the_two_classes_are_found_when_asked_for():
    assert par_agent.PARPolicy.__name__ == "PARPolicy"
    assert par_agent.PARModel.__name__ == "PARModel"
    assert {"PARPolicy", "PARModel"} <= set(dir(par_agent))


def test_unknown_attributes_are_attribute_errors():
    with pytest.raises(AttributeError, match="PARPolcy"):
        _ = par_agent.PARPolcy


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "par_agent", "--help"),
        ("-m", "par_agent", "finetune", "--help"),
        ("-m", "par_agent", "info", "par-mini"),
        ("-m", "par_agent", "demos", "--task", "PushSphere"),
        ("benchmarks/compare.py", "bundled/par-mini", "rows/act"),
    ],
)
def test_a_command_whose_output_nobody_reads_ends_quietly_as_after_sigpipe(words):
    readable, writable = os.pipe()
    os.close(readable)
    refused = "PushSphere" in words  # then the message on stderr is what nobody reads
    streams = {"stdout": subprocess.PIPE, "stderr": writable} if refused else {"stdout": writable}
    with subprocess.Popen([sys.executable, *words], **{"stderr": subprocess.PIPE, **streams}, cwd=ROOT) as process:
        os.close(writable)
        said = process.communicate()
    assert (process.returncode, b"".join(filter(None, said))) == (128 + signal.SIGPIPE, b"")


def test_a_pipe_that_breaks_elsewhere_is_no_quiet_end(capsys):
    def talk():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert run_command("tool", talk) == 2
    assert capsys.readouterr().err == "tool: error: what this command talks to has ended: [Errno 32] Broken pipe\n"


def test_output_that_cannot_be_written_is_one_line_on_stderr():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "par_agent", "--help"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "par-agent: error: [Errno 28] No space left on device\n")
