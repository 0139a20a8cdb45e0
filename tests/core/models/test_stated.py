"""What a checkpoint says of itself, and the scheduler that it then has."""

import logging

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, PNDMScheduler

from selfnpo_core.errors import InputError
from selfnpo_core.models.headers import Header
from selfnpo_core.models.stated import Stated, check_agree, settled, stated_in
from selfnpo_core.schedule import NoiseSchedule

V, ZERO = Stated(prediction="v_prediction"), Stated(prediction="v_prediction", zero_snr=True)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def header(*names, **metadata):
    return Header(shapes=dict.fromkeys(names, ()), metadata={k.replace("__", "."): v for k, v in metadata.items()})


@pytest.mark.parametrize(
    ("said", "stated"),
    [
        (header("a.weight"), Stated()),
        (header("v_pred"), V),
        (header("v_pred", "ztsnr"), ZERO),
        (header(modelspec__prediction_type="v"), V),
        (header(modelspec__prediction_type="V-Prediction"), V),
        (header("v_pred", modelspec__prediction_type="v"), V),
        (header(modelspec__prediction_type="epsilon"), Stated(prediction="epsilon")),
        (header(ss_v_parameterization="True", ss_zero_terminal_snr="True"), ZERO),
    ],
)
def test_what_is_said(said, stated):
    assert stated_in(said, "m") == stated


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (header("edm_mean", "edm_std"), "parametrised as EDM, which is not supported"),
        (header("edm_vpred.sigma_max"), "parametrised as EDM"),
        (header(modelspec__prediction_type="edm"), "parametrised as EDM"),
        (header(modelspec__prediction_type="x_theta"), "predicts 'x_theta', which is not supported"),
        (header("v_pred", modelspec__prediction_type="epsilon"), "both epsilon and v_prediction"),
    ],
)
def test_what_is_refused_by_name(said, words):
    with pytest.raises(InputError, match=words) as error:
        stated_in(said, "m")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("made", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_zero_snr_begins_at_its_step(made, caplog):
    scheduler = made(**BETAS)
    assert settled(scheduler, "m", Stated()) is scheduler
    with caplog.at_level(logging.WARNING):
        zero = settled(scheduler, "m", ZERO, say=True)
    assert "prediction_type v_prediction, timestep_spacing trailing, rescale_betas_zero_snr True" in caplog.text
    assert (zero.config.prediction_type, zero.config.beta_start) == ("v_prediction", 0.00085)
    if made is PNDMScheduler:  # which becomes DDIM's, that clips by default: wrong for latents
        assert not zero.config.clip_sample
    zero.set_timesteps(4)
    schedule = NoiseSchedule.from_scheduler(zero)
    grid = schedule.grid(4)
    assert grid[0] == zero.timesteps[0] == schedule.max_timestep
    assert schedule.at(grid[:1], torch.zeros(1, 1)).alpha == 0
    assert settled(zero, "m", ZERO) is zero


def test_a_folder_of_zero_snr_begins_at_its_step_too():
    leading = DDIMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert settled(leading, "m").config.timestep_spacing == "trailing"
    linspace = DDIMScheduler.from_config(leading.config, timestep_spacing="linspace")
    assert settled(linspace, "m") is linspace  # which has the last step


def test_zero_snr_of_epsilon_and_edm_schedulers_are_refused():
    with pytest.raises(InputError, match="zero terminal SNR that predicts epsilon"):
        settled(DDIMScheduler(**BETAS), "m", Stated(zero_snr=True))
    with pytest.raises(InputError, match="zero terminal SNR that predicts epsilon"):
        settled(DDIMScheduler(**BETAS, rescale_betas_zero_snr=True), "m")
    with pytest.raises(InputError, match="parametrised as EDM"):
        settled(EDMEulerScheduler(), "m")


def test_a_folder_may_not_contradict_itself():
    check_agree(V, {"prediction_type": "v_prediction"}, "unet", "s.json")
    check_agree(Stated(), {}, "unet", "s.json")
    check_agree(Stated(prediction="flow"), {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "unet", "s.json")
    with pytest.raises(InputError, match=r"unet says of itself v_prediction, but s\.json says epsilon"):
        check_agree(V, {"prediction_type": "epsilon"}, "unet", "s.json")
    with pytest.raises(InputError, match=r"unet is marked ztsnr, but s\.json is not"):
        check_agree(ZERO, {"prediction_type": "v_prediction"}, "unet", "s.json")
