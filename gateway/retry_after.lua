-- Runs on every answer and returns at once unless the status is 429 or 503: those must say when to come back. Services say
-- it in RetryInfo; the edge's own refusals carry the header already. gRPC answers have status 200 and never get here.

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  if status ~= "429" and status ~= "503" then
    return
  end
  if headers:get("retry-after") or headers:get("content-type") ~= "application/json" then
    return
  end
  local body = handle:body()
  local delay = body and string.match(body:getBytes(0, body:length()), '"retry_delay":"([%d.]+)s"')
  -- Reading the body ended the scope of `headers`.
  handle:headers():replace("retry-after", tostring(math.max(1, math.ceil(tonumber(delay or "1")))))
end
