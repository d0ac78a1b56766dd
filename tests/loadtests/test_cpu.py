import os

from loadtests.cpu import cpu_seconds, descendants, parse_stat, resident_mib, tree


def test_a_process_may_have_blanks_and_parentheses_in_its_name() -> None:
    """The fields are found behind the last parenthesis; reaped children count."""
    text = "7 (a) b (c)) S 3 7 7 0 -1 0 0 0 0 0 10 20 30 40 20 0 1 0 5"

    stat = parse_stat(text)

    assert (stat.parent, stat.ticks) == (3, 100)


def test_descendants_are_found_at_any_depth_and_no_others() -> None:
    """A server's tree, without its neighbours and its parent."""
    assert descendants(1, {2: 1, 3: 2, 4: 9, 9: 0, 1: 0}) == {1, 2, 3}


def test_this_process_has_a_tree_that_used_cpu_and_memory() -> None:
    """The real files are read, too."""
    pids = tree(os.getpid())

    assert os.getpid() in pids
    assert cpu_seconds(pids) > 0
    assert resident_mib(os.getpid()) > 1


def test_a_process_that_is_gone_uses_nothing() -> None:
    """Processes end while they are looked at; that is no error."""
    assert cpu_seconds([2**22 + 1]) == 0
    assert resident_mib(2**22 + 1) == 0
