"""Settings: each is described, sources have an order, and no secret is shown."""

from __future__ import annotations

import doctest
import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from rich.pretty import pretty_repr
from rich.traceback import Traceback

from runtime import settings as module
from runtime.errors import ConfigurationError
from runtime.masking import SECRET_NAMES
from runtime.settings import PREFIX, Settings, descriptions, load_settings

SECRET = "hunter2hunter2"
ADDRESSES = [name for name in Settings.__struct_fields__ if name.startswith("database_") and name.endswith("_url")]
SECRETS = dict.fromkeys(ADDRESSES, f"postgresql://u:{SECRET}@db/plant") | dict.fromkeys(SECRET_NAMES, SECRET)
SECRETS |= {"database_url": f"postgresql://db/plant?user=u&password={SECRET}", "home": "elsewhere"}
SECRETS |= {"schema_registry_url": f"http://u:{SECRET}@registry"}


def test_its_examples_are_right() -> None:
    """What the docstrings show is what the functions return."""
    assert doctest.testmod(module).failed == 0


def test_every_setting_is_described() -> None:
    """Each field has one sentence that explains it, in the order of the fields."""
    assert list(descriptions()) == list(Settings.__struct_fields__)
    assert [name for name, sentence in descriptions().items() if not sentence.endswith(".")] == []


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format, pretty_repr])
def test_no_secret_is_shown(show: object) -> None:
    """Passwords and keys are masked whichever way settings are shown; what is no secret is shown."""
    settings = Settings(**SECRETS)  # type: ignore[arg-type]  # Each of these is a text.
    assert callable(show)
    text = show(settings)
    assert SECRET not in text
    assert "home='elsewhere'" in text
    assert settings.master_key == SECRET, "it is still there to be used"


@pytest.mark.parametrize("address", ["host=h password={} user=u", "host=h password = '{}' user=u"])
def test_no_password_of_an_address_in_words_is_shown(address: str) -> None:
    """libpq's other form is refused, and `plant settings`, which the error names, shows it: without the password."""
    settings = Settings(database_url=address.format(SECRET))

    assert SECRET not in repr(settings)
    assert "host=h" in repr(settings)


def test_no_secret_is_shown_with_local_variables() -> None:
    """A traceback that shows local variables masks the secrets of settings."""

    def fail(settings: Settings) -> None:
        raise ValueError(len(settings.home))

    output = io.StringIO()
    with pytest.raises(ValueError, match="9") as error:
        fail(Settings(**SECRETS))  # type: ignore[arg-type]  # Each of these is a text.
    frames = error.value.__traceback__
    assert frames is not None
    shown = Traceback.from_exception(ValueError, error.value, frames.tb_next, show_locals=True, locals_max_string=None)
    Console(file=output, width=4000).print(shown)
    assert "elsewhere" in output.getvalue(), "the local variable is shown"
    assert SECRET not in output.getvalue()


def test_the_environment_wins_over_the_address_file(tmp_path: Path) -> None:
    """The environment comes first, then the stack's file, then the default; an empty variable counts as unset."""
    (tmp_path / "stack.env").write_text("# by hand\nPLANT_TOPIC_PARTITIONS=3\nPLANT_CONSUMER_GROUP = file \n")
    environ = {"PLANT_HOME": str(tmp_path), "PLANT_TOPIC_PARTITIONS": "5", "PLANT_INGRESS_HOST": ""}
    settings = load_settings(environ)
    assert (settings.topic_partitions, settings.consumer_group) == (5, "file")
    assert settings.ingress_host == Settings().ingress_host


@pytest.mark.parametrize(
    ("name", "value"),
    [("topic_partitions", "0"), ("topic_partitions", SECRET), ("kafka_sasl_mechanism", "NONE"), ("ingress_port", "x")],
)
def test_a_value_that_does_not_fit_names_its_variable_and_shows_no_secret(
    name: str, value: str, tmp_path: Path
) -> None:
    """The error names the variable; neither it nor its cause shows another setting or a text that is no number."""
    secrets = {PREFIX + each.upper(): text for each, text in SECRETS.items()}
    environ = {**secrets, "PLANT_HOME": str(tmp_path), PREFIX + name.upper(): value}
    with pytest.raises(ConfigurationError, match=PREFIX + name.upper()) as error:
        load_settings(environ)
    cause = error.value.__cause__
    assert isinstance(cause, msgspec.ValidationError)
    assert SECRET not in f"{error.value}{error.value!r}{cause}{cause!r}"
