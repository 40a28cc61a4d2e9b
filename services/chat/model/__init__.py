"""The seam to the model: what is asked of it, and what comes back piece by piece."""

from services.chat.model.provider import Model, open_model
from services.chat.model.request import FunctionSpec, HostedMcpServer, ModelRequest

__all__ = ["FunctionSpec", "HostedMcpServer", "Model", "ModelRequest", "open_model"]
