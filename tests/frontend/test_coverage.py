from pathlib import Path

from perdure.frontend import coverage
from perdure.frontend.server import IMPLEMENTED, OPERATOR_SERVICE, WORKFLOW_SERVICE


def test_the_page_is_current():
    found = Path(__file__).parents[2].joinpath("docs/api-coverage.md").read_text()
    assert found == coverage.page(), "run: python -m perdure.frontend.coverage > docs/api-coverage.md"


def test_only_methods_of_the_api_are_built():
    for service in (WORKFLOW_SERVICE, OPERATOR_SERVICE):
        assert IMPLEMENTED[service.full_name].keys() <= {method.name for method in service.methods}
