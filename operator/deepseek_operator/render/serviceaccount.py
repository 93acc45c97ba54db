"""The identity of the pods: an account without any right, whose token is not even mounted."""

from deepseek_operator import names
from deepseek_operator.manifest import SERVICE_ACCOUNT, Manifest
from deepseek_operator.plan import Plan
from deepseek_operator.render.common import header


def service_account(*, plan: Plan) -> Manifest:
    """Return the ServiceAccount of all pods of one object."""
    manifest = header(plan, SERVICE_ACCOUNT, name=plan.key.name, role=names.ROLE_RANK, component="engine")
    return {**manifest, "automountServiceAccountToken": False}
