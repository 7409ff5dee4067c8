"""Options of the tests."""


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=20, help="how often a real run is killed (with -m slow)")
