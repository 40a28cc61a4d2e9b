-- Runs on every route that needs an identity. What is no token of ours is marked to be traded for one by ext_authz: a name
-- and password (TAKES_BASIC), or another issuer's token (TAKES_FOREIGN; both are set in front of this). The mark decides
-- only who is asked: a token that calls itself ours and is not is refused by jwt_authn, any other by auth. It is a text, the
-- class by which the limiter counts such calls: Envoy's limits read nothing else out of metadata.
local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
local SIX_BITS = {}
for i = 1, #ALPHABET do
  SIX_BITS[string.byte(ALPHABET, i)] = i - 1
end

local function decoded(text)
  local bytes, value, bits = {}, 0, 0
  for i = 1, #text do
    value = value * 64 + SIX_BITS[string.byte(text, i)]
    bits = bits + 6
    if bits >= 8 then
      bits = bits - 8
      local step = 2 ^ bits
      bytes[#bytes + 1] = string.char(math.floor(value / step))
      value = value % step
    end
  end
  return table.concat(bytes)
end

local function is_foreign(token)
  local payload = string.match(token, "^[%w_-]+%.([%w_-]+)%.[%w_-]*$")
  return payload ~= nil and not string.find(decoded(payload), '"iss":"parley"', 1, true)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local scheme, rest = string.match(headers:get("authorization") or "", "^(%a+) (.+)$")
  if scheme == "Basic" and TAKES_BASIC then
    -- A browser that keeps a password sends it with every page's request, other sites' included. Who is no browser sends
    -- no Origin.
    if changes_something(headers) and headers:get("origin") and not comes_from_allowed_page(headers) then
      return handle:respond({ [":status"] = "403" }, "")
    end
  elseif not (scheme == "Bearer" and TAKES_FOREIGN and is_foreign(rest)) then
    return
  end
  handle:streamInfo():dynamicMetadata():set("parley", "credentials", "exchange")
end
