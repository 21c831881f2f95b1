"""Each page that shows a message, a command or a line of code shows one that is real."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from jetson_mamba.cli import app
from jetson_mamba.report.findings import SYMPTOMS
from jetson_mamba.rewrite import Call, Override, Refused, rewrite
from vendored_overrides.extensions import CONVOLUTION_FORWARD, IMPORTS

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCS = REPOSITORY / "docs"
PAGES = [*DOCS.glob("*.md"), *REPOSITORY.glob("*.md")]


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_each_symptom_has_its_entry_with_a_cause_and_a_cure(symptom: str) -> None:
    entries = re.split(r"^## ", (DOCS / "symptoms.md").read_text(), flags=re.MULTILINE)
    (entry,) = (each for each in entries if f"{{ #{symptom} }}" in each)
    assert "**Cause.**" in entry and "**Cure.**" in entry
    message = SYMPTOMS[symptom]
    # The words that people search for, without what stands around them.
    words = re.findall(r"'[^']+'|[\w().:]{6,}", message)
    assert words
    missing = [word for word in words if word.strip("'").lower() not in entry.lower()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_that_a_page_shows_exist(page: Path) -> None:
    commands = {
        command.callback.__name__ for command in app.registered_commands if command.callback
    }
    shown = set(re.findall(r"(?:\$ |`)jetson-mamba ([a-z]+)", page.read_text()))
    assert shown <= commands


def test_the_call_form_that_is_shown_makes_the_call_understood() -> None:
    page = (DOCS / "call-forms.md").read_text()
    call, form, result = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    source = "import causal_conv1d_cuda\n" + call
    names = {"Form": type(CONVOLUTION_FORWARD.forms[0])}
    added = eval(form, names)
    # Whether or not somebody has contributed it.
    others = tuple(each for each in CONVOLUTION_FORWARD.forms if each != added)
    with pytest.raises(Refused, match="line 2 has 6 positional arguments, a form that is not"):
        rewrite(source, override(CONVOLUTION_FORWARD._replace(forms=others)))
    known = CONVOLUTION_FORWARD._replace(forms=(*others, added))
    texts = [rewrite(source, override(known)).text, "import jetson_mamba.ops\n" + result]
    assert len({ast.dump(ast.parse(text)) for text in texts}) == 1


def override(forward: Call) -> Override:
    return Override("mamba_ssm.ops.selective_scan_interface", (*IMPORTS, forward))


@pytest.mark.parametrize("name", ["README", "docs/first-steps"])
def test_the_chinese_page_has_the_commands_and_sections_of_the_english_one(name: str) -> None:
    english = (REPOSITORY / f"{name}.md").read_text()
    chinese = (REPOSITORY / f"{name}.zh.md").read_text()
    for pattern in (r"^ *\$ .*$", r"^```python\n[^`]*"):
        found = [re.findall(pattern, page, re.MULTILINE) for page in (english, chinese)]
        assert [uncommented(each) for each in found[0]] == [uncommented(each) for each in found[1]]
    sections = [len(re.findall(r"^## ", page, re.MULTILINE)) for page in (english, chinese)]
    assert sections[0] == sections[1]


def uncommented(code: str) -> str:
    """Code without what a reader's language changes in it."""
    return re.sub(r" +#.*", "", code)
