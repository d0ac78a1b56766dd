from importlib.metadata import version

from gateway import __version__
from gateway.adapters.circumstances import circumstances


def test_circumstances_name_what_the_last_bits_depend_on() -> None:
    """Two that are equal must give the same bits; each says something."""
    here = circumstances()
    assert here == circumstances()
    assert (here.code, here.numpy, here.scipy) == (
        __version__,
        version("numpy"),
        version("scipy"),
    )
    assert here.python.startswith("3.")
    assert here.cpu
