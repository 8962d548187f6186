from rlm.local.registry import CLAIM_LIFE_S, MemoryRegistry
from rlm.workers.base import WorkerRegistry
from tests.workers.registry_contract import Clock, RegistryContract


class TestMemoryRegistry(RegistryContract):
    claim_life_s = CLAIM_LIFE_S

    def registry(self, clock: Clock) -> WorkerRegistry:
        return MemoryRegistry(clock=clock)
