-- Runs on every answer and returns at once unless it is an error in JSON. Services say everything about theirs in details.
-- An error without ErrorInfo was made by gRPC itself (a deadline, a limit): its message is about its own insides, so an entry
-- of ERRORS, which is set in front of this, takes its place. 429 and 503 must say when to come back: services say it in
-- RetryInfo, the edge's own refusals carry the header already. gRPC answers have status 200.

-- Inside a string of JSON the quotes would be escaped.
local ERROR_INFO = '"@type":"type.googleapis.com/google.rpc.ErrorInfo"'

local function replace(handle, error)
  local request_id = handle:headers():get("x-request-id") or ""
  local text = string.gsub(error.body, "%%REQ%(X%-REQUEST%-ID%)%%", function() return request_id end)
  handle:body(true):setBytes(text)
  handle:headers():replace(":status", error.status)
  handle:headers():replace("content-type", "application/json")
  handle:headers():replace("content-length", tostring(#text))
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  if headers:get("x-envoy-not-grpc") then
    for _, name in ipairs({ "x-envoy-not-grpc", "grpc-status", "grpc-message", "grpc-status-details-bin" }) do
      headers:remove(name)
    end
    return replace(handle, ERRORS.not_grpc)
  end
  if status == "429" and headers:get("grpc-status") then
    -- gRPC-Web makes its code of the HTTP status, and knows no other for this one than "unavailable".
    headers:replace("grpc-status", "8")
  end
  if status < "400" or headers:get("content-type") ~= "application/json" then
    return
  end
  local body = handle:body()
  local text = body and body:getBytes(0, body:length()) or ""
  local code = string.match(text, '^{"code":(%d+),')
  if code and not string.find(text, ERROR_INFO, 1, true) then
    local error = ERRORS[code] or ERRORS.other
    replace(handle, error)
    status, text = error.status, error.body
  end
  -- Reading the body ended the scope of `headers`.
  if (status == "429" or status == "503") and not handle:headers():get("retry-after") then
    local delay = string.match(text, '"retry_delay":"([%d.]+)s"')
    handle:headers():replace("retry-after", tostring(math.max(1, math.ceil(tonumber(delay or "1")))))
  end
end
