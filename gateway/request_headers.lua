-- Runs on every request, before anything else looks at it: refuses headers that the gRPC of the services cannot take, whose
-- complaints would quote them in its log, and gives the one spelling to what has several. LARGEST_HEADER_BYTES is set in front of this.

local GRPC_CONTENT = "^application/grpc"
-- Any package.Service/Method; whether there is such an RPC is for the routes to say.
local GRPC_PATH = "^/[%w_.]+%.[%w_]+/[%w_]+%f[?%z]"

-- What gRPC takes as a name, after the colon of a pseudo-header, and as a value.
local NAME = "^:?[%w_.-]+$"
local BEYOND_VALUE = "[^\t -~]"

local SCHEMES = { bearer = "Bearer", basic = "Basic" }

local function refuse(handle, status)
  handle:respond({ [":status"] = status }, "")
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local size = 0
  local is_carried = true
  for name, value in pairs(headers) do
    size = size + #name + #value
    -- Cookies go no further than the edge: those of other applications may hold what they like.
    local is_fit = name == "cookie" or not string.find(value, BEYOND_VALUE)
    is_carried = is_carried and is_fit and string.find(name, NAME)
  end
  if size > LARGEST_HEADER_BYTES then
    return refuse(handle, "431")
  end
  if not is_carried then
    return refuse(handle, "400")
  end
  local content = string.lower(headers:get("content-type") or "")
  if string.find(content, GRPC_CONTENT) and not string.find(headers:get(":path"), GRPC_PATH) then
    -- Envoy would make it a gRPC answer, but nobody who speaks gRPC asks for such a path: whole_errors.lua makes it REST's.
    headers:remove("content-type")
    return handle:respond({ [":status"] = "415", ["x-envoy-not-grpc"] = "1" }, "")
  end
  local scheme, token = string.match(headers:get("authorization") or "", "^(%a+) (.*)$")
  local spelling = scheme and SCHEMES[string.lower(scheme)]
  if spelling and scheme ~= spelling then
    headers:replace("authorization", spelling .. " " .. token)
  end
end
