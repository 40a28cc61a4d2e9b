-- Runs only on routes of streams that are answered line by line: those of records, and those of events where it was asked
-- for. The transcoder calls the lines application/json; their right name is set here, on answers that are streams. The body
-- is not looked at.

function envoy_on_response(handle)
  if finish(handle) then
    return
  end
  if handle:headers():get(":status") == "200" then
    handle:headers():replace("content-type", "application/x-ndjson")
  end
end
