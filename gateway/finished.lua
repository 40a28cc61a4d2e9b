-- Stands in front of the scripts of streams. A service that has nothing more to tell of a stream says so before its end, in
-- its first headers: an EventSource would ask again after an empty 200 for ever, and stops at 204.
local function finish(handle)
  local headers = handle:headers()
  if headers:get("x-parley-finished") ~= "1" then
    return false
  end
  for _, name in ipairs({ "x-parley-finished", "content-type", "content-length", "transfer-encoding" }) do
    headers:remove(name)
  end
  headers:replace(":status", "204")
  return true
end

