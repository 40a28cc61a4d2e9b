"""MemoryService over gRPC: the RPCs stand beside what they call, and come together here."""

from typing import Final

from services.memory.assembly import Assembly
from services.memory.context_servicer import ContextRpcs
from services.memory.conversation_memory import ConversationMemory
from services.memory.erasure.purge import Purge
from services.memory.erasure.servicer import ErasureRpcs
from services.memory.erasure.store import ErasureStore
from services.memory.facts.servicer import FactRpcs
from services.memory.facts.store import FactStore
from services.memory.recall.search import Recall
from services.memory.recall.servicer import RecallRpcs
from services.memory.summaries.servicer import SummaryRpcs
from services.memory.summaries.store import SummaryStore
from services.memory.transfer.export_store import ExportStore
from services.memory.transfer.import_store import ImportStore
from services.memory.transfer.servicer import TransferRpcs
from services.runtime.fairness import FairGate

# Each asks for two connections: what else is asked of memory, the contexts of turns above all, has the others.
_SEARCHES_AT_ONCE: Final = 4


class MemoryServicer(ContextRpcs, ErasureRpcs, FactRpcs, RecallRpcs, SummaryRpcs, TransferRpcs):
    """The RPCs of parley.memory.v1.MemoryService."""

    def __init__(  # noqa: PLR0913 - the parts of every area come together here
        self,
        *,
        assembly: Assembly,
        memory: ConversationMemory,
        erasure: ErasureStore,
        exports: ExportStore,
        facts: FactStore,
        imports: ImportStore,
        purge: Purge,
        recall: Recall,
        summaries: SummaryStore,
    ) -> None:
        self._assembly = assembly
        self._memory = memory
        self._erasure = erasure
        self._exports = exports
        self._facts = facts
        self._imports = imports
        self._purge = purge
        self._recall = recall
        self._search_gate = FairGate(size=_SEARCHES_AT_ONCE)
        self._summaries = summaries
