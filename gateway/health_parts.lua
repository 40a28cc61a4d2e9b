-- Runs on /health where somebody shows an identity; the health_check filter answers everybody else. It tells an
-- administrator what this edge knows of each part, and others the one word. PARTS, by cluster whether nothing goes without it,
-- and VERSION are set in front of this. What Envoy says of its clusters are names, addresses and flags: only counts of them go out.
local function is_admin(handle)
  local metadata = handle:streamInfo():dynamicMetadata():get("envoy.filters.http.jwt_authn")
  local roles = metadata and metadata["claims"] and metadata["claims"]["roles"]
  for _, role in ipairs(type(roles) == "table" and roles or {}) do
    if role == "admin" then
      return true
    end
  end
  return false
end

local function counted(text)
  local found = {}
  for cluster, flags in string.gmatch(text, "([%w_]+)::[^%s]-::health_flags::([^\n]+)") do
    local part = found[cluster] or { healthy = 0, processes = 0 }
    part.processes = part.processes + 1
    part.healthy = part.healthy + (flags == "healthy" and 1 or 0)
    found[cluster] = part
  end
  return found
end

function envoy_on_request(handle)
  local call = { [":method"] = "GET", [":path"] = "/clusters", [":authority"] = "admin" }
  local _, text = handle:httpCall("admin", call, "", 1000)
  local found = counted(text or "")
  local parts, is_serving = {}, true
  for _, named in ipairs(PARTS) do
    local name, is_required = unpack(named)
    local part = found[name] or { healthy = 0, processes = 0 }
    is_serving = is_serving and (part.healthy > 0 or not is_required)
    local word = part.healthy > 0 and "serving" or "not_serving"
    local form = '"%s":{"status":"%s","healthy":%d,"processes":%d}'
    parts[#parts + 1] = string.format(form, name, word, part.healthy, part.processes)
  end
  local told = is_admin(handle) and ',"parts":{' .. table.concat(parts, ",") .. "}" or ""
  local body = string.format('{"status":"%s","version":"%s"%s}', is_serving and "serving" or "not_serving", VERSION, told)
  local headers = { [":status"] = is_serving and "200" or "503", ["content-type"] = "application/json" }
  headers["cache-control"] = "no-store"
  handle:respond(headers, body)
end
