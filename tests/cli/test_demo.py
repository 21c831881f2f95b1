"""The demo trains published releases of mamba-ssm with nothing compiled. It says how it went."""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import pytest
import torch

from jetson_mamba.cli import main
from jetson_mamba.demo import models, text, training
from jetson_mamba.errors import CannotRun
from tests import interpreters
from tests.cli.command import jetson_mamba, kept
from tools.releases import release_path


def demo(
    version: str, folder: Path, *arguments: str, steps: int = 6, cache: str | None = None
) -> str:
    """What a short demo of a release prints."""
    few = ("--steps", str(steps), "--sample", "12", "--output", "shown")
    path = (release_path(version),)
    done = jetson_mamba(
        "demo",
        *few,
        *arguments,
        folder=folder,
        path=path,
        # An optimizer imports the compiler, which takes longer than these steps.
        modules=interpreters.COMPILER,
        JETSON_MAMBA_CACHE=cache or str(folder / "cache"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("version", ["2.2.4", "2.3.2.post1"])
def test_both_models_learn_and_the_tables_say_on_what(version: str, tmp_path: Path) -> None:
    printed = demo(version, tmp_path)
    assert f"mamba-ssm {version} on " in printed
    rows = [line.split() for line in printed.splitlines()]
    for kind in ("Mamba", "Mamba2"):
        (result,) = (row for row in rows if row[:1] == [kind] and row[-1:] == ["s"])
        first, last = float(result[2]), float(result[3])
        assert last < first
        assert f"{kind} continues a line it has not seen" in printed
    for target in ("ops.selective_scan_interface", "ops.triton.ssd_combined"):
        assert any(row[:3] == [target, "modified", "made"] for row in rows)
    ops = {row[0] for row in rows if len(row) > 2 and row[2] in ("pytorch", "cuda")}
    assert {"causal_conv1d", "selective_scan"} <= ops
    picture = (tmp_path / "shown" / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_a_release_without_mamba2_trains_the_other(tmp_path: Path) -> None:
    printed = demo("1.0.1", tmp_path, cache=kept())
    assert "This release has no Mamba2" in printed
    assert "Mamba continues a line" in printed
    assert "Mamba2 continues a line" not in printed


def test_a_text_of_the_users_gives_the_same_sample_for_the_same_seed(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("天地玄黄,宇宙洪荒。日月盈昃,辰宿列张。\n" * 1000, "utf-8")
    first, again, other = (
        demo(
            *("2.3.2.post1", tmp_path, "--text", "poem.txt", "--seed", seed),
            steps=2,
            cache=kept(),
        )
        .partition("╭")[2]
        .partition("model")[0]
        for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_the_library_is_read_the_same_way_each_time() -> None:
    first, again = text.standard_library(), text.standard_library()
    assert first == again
    assert len(first.training) > 1_000_000
    assert set(first.training + first.held_out) == set(first.alphabet)


def test_the_library_is_read_until_there_is_enough_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.py").write_text(f"{name} = 1\n" * 10 + "    x\n")
    (tmp_path / "b.py").write_bytes(b"\xff")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for most, count in ((1, 1), (63, 1), (64, 2), (126, 2), (127, 3)):
        monkeypatch.setattr(text, "LIBRARY_CHARACTERS", most)
        monkeypatch.setattr(text, "LEAST_CHARACTERS", 10)
        found = text.standard_library()
        assert found.name.startswith(f"{count} modules of Python")
        whole = found.training + found.held_out
        assert "\tx\n" in whole and "    " not in whole
        assert [name for name in "abcd" if f"{name} = 1" in whole] == ["a", "c", "d"][:count]
    monkeypatch.setattr(text, "LEAST_CHARACTERS", 1000)
    with pytest.raises(CannotRun, match=f"found {len(whole)} characters of Python source"):
        text.standard_library()


def test_a_sample_is_what_follows_the_prompt_and_the_same_for_a_seed() -> None:
    class Model(torch.nn.Module):
        """Writes the character after the last one."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, ids: torch.Tensor) -> Any:
            following = torch.nn.functional.one_hot((ids + 1) % 4, 6)
            return SimpleNamespace(logits=following * 1e4)

    of = text.Text("of four", "abcd" * 10, "", "abcd")
    model = Model()
    assert training.sample(model, of, "ab", 6, 0) == "cdabcd"
    assert not model.training


def test_the_alphabet_is_bounded_and_rare_characters_become_one() -> None:
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 2 * text.LARGEST_ALPHABET)))
    found = text.split("many", "common " * 100 + many)
    assert len(found.alphabet) == text.LARGEST_ALPHABET
    assert text.UNKNOWN in found.training and "common" in found.training


def test_the_entropy_of_even_characters_is_the_logarithm_of_their_number() -> None:
    even = text.Text("even", "abcd" * 10, "", "abcd")
    assert math.isclose(even.unigram_entropy(), math.log(4))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((3.0, 2.0, math.nan), "at step 3 the loss is nan"),
        ((3.0, 2.0, 3.5), "the loss has not fallen"),
    ],
)
def test_a_loss_that_does_not_fall_is_a_failure(
    losses: tuple[float, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Package:
        __version__ = "0"
        Mamba = object

    class Model(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> Any:
            return SimpleNamespace(logits=super().forward(ids))

    def train(*_: object) -> Iterator[float]:
        yield from losses

    monkeypatch.setattr(models, "mamba_ssm", Package)
    monkeypatch.setattr(models, "build", lambda _, __, size, ___: Model(size, size))
    monkeypatch.setattr(training, "train", train)
    assert main(["demo", "--steps", "3", "--sample", "4", "--output", str(tmp_path)]) == 1
    assert expected in capsys.readouterr().out
