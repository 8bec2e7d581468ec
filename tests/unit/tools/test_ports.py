"""Which ports the processes of a test run take."""

from itertools import combinations

from tests.ports import share


def test_no_two_processes_share_a_port() -> None:
    shares = [share(worker) for worker in (None, *(f"gw{number}" for number in range(8)))]
    for one, other in combinations(shares, 2):
        assert not set(one) & set(other)
    for one in shares:
        assert len(one) >= 1000
        assert one[0] >= 20000
        assert one[-1] <= 29999
    # More workers than that take shares again, and never that of processes that are no worker.
    assert not set(share(None)) & {port for number in range(99) for port in share(f"gw{number}")}
