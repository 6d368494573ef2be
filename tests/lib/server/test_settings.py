from __future__ import annotations

import pytest

from medseg.errors import MedsegError
from medseg.methods import METHODS, method_class
from medseg.server.settings import AppSettings


def test_defaults_offer_every_method() -> None:
    assert AppSettings.from_conf({}).models == tuple(METHODS)


def test_values_are_read_from_strings() -> None:
    settings = AppSettings.from_conf(
        {
            "models": "supervised, caml",
            "labels": "left atrium, scar",
            "validation": "a,b",
            "lease_minutes": "2.5",
            "auto_scoring": "no",
            "allow_remote": "true",
            "server_mode": "true",
        }
    )

    assert settings.models == ("supervised", "caml")
    assert settings.labels == ("left atrium", "scar")
    assert settings.validation == ("a", "b")
    assert settings.lease_minutes == 2.5
    assert settings.auto_scoring is False
    assert settings.allow_remote is True


@pytest.mark.parametrize(
    ("conf", "says"),
    [
        ({"models": "cmal"}, "known models: caml, dram, "),
        ({"models": " "}, "known models: caml, dram, "),
        ({"label": "a"}, "did you mean labels"),
        ({"lease_minutes": "long"}, "give a number"),
        ({"lease_minutes": "0"}, "positive"),
        ({"seed": "1.5"}, "whole number"),
        ({"auto_scoring": "maybe"}, "true or false"),
        ({"gpus": "0"}, "number from 1, or all"),
        ({"gate_eps": "3"}, "0..1"),
        ({"labels": "a,a"}, "twice"),
        ({"patient_pattern": "("}, "not a regular expression"),
        ({"preset": "huge", "models": "caml"}, "known presets"),
        ({"set": "iters=3"}, "did you mean iterations"),
        ({"set": "iterations"}, "key=value"),
        ({"caml.iters": "3"}, "did you mean iterations"),
        ({"caml.iterations": "few"}, "iterations"),
        ({"nnunet.iterations": "3"}, "known models"),
    ],
)
def test_mistakes_are_named(conf: dict[str, str], says: str) -> None:
    with pytest.raises(MedsegError, match=says):
        AppSettings.from_conf(conf)


def test_set_goes_to_all_methods_that_have_the_setting_and_the_methods_own_wins() -> None:
    settings = AppSettings.from_conf(
        {"set": "iterations=7,patch=16,16,8,occ_rows=64", "supervised.iterations": "9", "models": "caml,supervised"}
    )

    assert settings.config("caml").iterations == 7
    assert settings.config("caml").patch == (16, 16, 8)  # type: ignore[attr-defined]
    assert settings.config("caml").occ_rows == 64  # type: ignore[attr-defined]
    assert settings.config("supervised").iterations == 9


def test_request_wins_over_conf_and_conf_over_preset() -> None:
    settings = AppSettings.from_conf({"models": "caml", "preset": "cpu", "caml.seed": "4"})

    assert settings.config("caml").seed == 4
    assert settings.config("caml", {"seed": "5"}).seed == 5
    assert settings.config("caml").iterations != AppSettings(preset="paper").config("caml").iterations


def test_without_a_preset_the_device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert AppSettings().config("caml") == method_class("caml").config_class()
    assert AppSettings(device="cpu").config("caml") == AppSettings(preset="cpu").config("caml")
