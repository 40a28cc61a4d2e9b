-- Runs only on routes that read (GET) and need an identity. A browser's EventSource, link or image can send no Authorization
-- header, but its cookies: the first cookie of SESSION_COOKIES, which is set in front of this, that holds an access token
-- becomes the bearer, which every check behind this and every service then sees as any other. A header that is there wins.
-- Routes that write do not run this: another site could make a browser send its cookies there.

-- What a signed JWT looks like. Better Auth's own cookie is an opaque value with one dot: no identity here.
local TOKEN = "^[%w_-]+%.[%w_-]+%.[%w_-]+$"

local function value_of(cookies, name)
  for found, value in string.gmatch(cookies, "([^=;, ]+)=([^;, ]*)") do
    value = string.gsub(value, '^"(.*)"$', "%1")
    if found == name and string.find(value, TOKEN) then
      return value
    end
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local cookies = headers:get("cookie")
  if not cookies or headers:get("authorization") then
    return
  end
  for _, name in ipairs(SESSION_COOKIES) do
    local token = value_of(cookies, name)
    if token then
      return headers:replace("authorization", "Bearer " .. token)
    end
  end
end
