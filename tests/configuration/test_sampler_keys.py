"""The keys of `samples` that choose the sampler and where guidance is on."""

import math

import pytest

from helpers.commands import ROOT
from recipe.configuration.problems import ConfigError
from recipe.configuration.reader import read_config
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.edm2.samplers.guidance import Interval

EDM2 = str(ROOT / "yamls" / "edm2.yaml")


def problem_of(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config([EDM2, *arguments])
    (problem,) = caught.value.problems
    return str(problem)


def test_every_key_reaches_the_sampler():
    keys = ["num_steps=9", "sigma_min=0.01", "sigma_max=50", "rho=5", "guidance=1.7", "guidance_interval=[0.3,40]"]
    schedule = {"num_steps": 9, "sigma_min": 0.01, "sigma_max": 50, "rho": 5}
    schedule |= {"guidance": 1.7, "interval": Interval(0.3, 40)}
    for own, settings in (
        (["churn=3", "s_noise=1.1"], {"S_churn": 3, "S_noise": 1.1}),
        (["churn=3", "s_min=0.1", "s_max=9"], {"S_churn": 3, "S_min": 0.1, "S_max": 9}),
        (["state_dtype=float64"], {"state_dtype": "float64"}),
        (["sampler=dpmpp_2m_sde", "solver_type=heun"], {"sampler": "dpmpp_2m_sde", "solver_type": "heun"}),
        (["sampler=dpmpp_2m_sde", "eta=0.4"], {"sampler": "dpmpp_2m_sde", "eta": 0.4}),
        (["sampler=unipc", "order=3"], {"sampler": "unipc", "order": 3}),
        (["sampler=restart", "restart=[[4,1,0.1,2]]"], {"sampler": "restart", "restart": [[4, 1, 0.1, 2]]}),
    ):
        samples = read_config([EDM2, *(f"samples.{key}" for key in keys + own)]).samples
        own_way = {"restart": [[3, 2, 0.06, 0.3]], "in_one_batch": False}
        expected = SamplerSettings(**{**own_way, **schedule, **settings})  # pyright: ignore
        assert samples.settings() == expected


def test_defaults_are_those_of_the_sampler():
    settings = read_config([EDM2]).samples.settings()
    assert settings == SamplerSettings(16, guidance=2.0, in_one_batch=False, restart=[[3, 2, 0.06, 0.3]])
    assert settings.interval == (0, math.inf)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["samples.sampler=ddim"], "samples.sampler = 'ddim': must be 'heun', 'euler', 'euler_ancestral', 'dpmpp_2m'"),
        (
            ["samples.eta=0.5"],
            "samples.eta = 0.5: does nothing with samples.sampler heun; fix: leave it out, or set "
            "samples.sampler to euler_ancestral or dpmpp_2m_sde or dpmpp_3m_sde",
        ),
        (["samples.sampler=euler", "samples.churn=4"], "samples.churn = 4.0: does nothing with samples.sampler euler"),
        (["samples.s_max=9"], "samples.s_max = 9.0: is of samples.churn, which is 0; fix: leave it out, or set for"),
        (["samples.sampler=euler", "samples.s_min=1"], "samples.s_min = 1.0: does nothing with samples.sampler euler"),
        (["samples.solver_type=heun"], "samples.solver_type = heun: does nothing with samples.sampler heun; fix:"),
        (["samples.sampler=dpmpp_2m_sde", "samples.solver_type=euler"], "samples.solver_type = 'euler': must be"),
        (["samples.state_dtype=float16"], "samples.state_dtype = 'float16': must be 'float32' or 'float64'"),
        (["samples.order=3"], "samples.order = 3: does nothing with samples.sampler heun"),
        (["samples.restart=[[4,2,0.06,0.3]]"], "does nothing with samples.sampler heun"),
        (["samples.sampler=restart", "samples.restart=[[4,2,0.3]]"], "[4.0, 2.0, 0.3]: must be [N, K, t_min, t_max]"),
        (["samples.sampler=restart", "samples.restart=[[4,2,70,90]]"], "t_min's nearest level is the first"),
        (["samples.sampler=unipc", "samples.order=4"], "samples.order = 4: must be less than or equal to 3"),
        (["samples.sigma_min=80"], "samples.sigma_min = 80: must be below samples.sigma_max"),
        (["samples.guidance_interval=[3,0.3]"], "[3.0, 0.3]: must be two noise levels, 0 <= lo < hi"),
        (["samples.guidance_interval=[3]"], "[3.0]: must be two noise levels, 0 <= lo < hi"),
        (["samples.guidance_interval=[0.3,0.31]"], "(0.3, 0.31] holds none of the 16 noise levels, 80 to 0.002"),
        (["samples.guidance_interval=[0.3,3]", "samples.guidance=1"], "does nothing: samples.guidance is 1"),
    ],
)
def test_refused(arguments: list[str], said: str):
    assert said in problem_of(*arguments)
