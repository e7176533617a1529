"""x"""
from tests.small_project import *
def test_x(chain):
    for name, r in chain.results.items():
        print(name, r.success, failures(r))
        print(materialized(r))
        print(verdicts(r))
    assert 0
