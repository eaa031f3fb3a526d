"""Names that are nearly right are answered with the right one."""

import pytest

from fastguide.common.checks import check_name, did_you_mean, nearest

KNOWN = ("ddim", "dpm_2m", "dpm_2m_sde", "unipc", "euler_a")


@pytest.mark.parametrize(
    ("name", "right"),
    [("DDIM", "ddim"), ("dpm2m", "dpm_2m"), ("DPM-2M SDE", "dpm_2m_sde"), ("unipcc", "unipc")],
)
def test_the_nearest_name(name, right):
    assert nearest(name, KNOWN) == right
    assert did_you_mean(name, KNOWN) == f"; did you mean {right!r}?"


def test_nothing_is_said_where_nothing_is_near():
    assert nearest("zzz", KNOWN) is None
    assert did_you_mean("zzz", KNOWN) == ""
    with pytest.raises(ValueError, match=r"'unipc', 'euler_a'; did you mean 'euler_a'\?$"):
        check_name("solver", "eulera", KNOWN)
