-- Runs on the REST routes that need an identity. A browser's EventSource, link, image or form can send no Authorization
-- header, but its cookies: the first cookie of SESSION_COOKIES, which is set in front of this, that holds a token becomes the
-- bearer, which every check behind this and every service then sees as any other. A header that is there wins. What changes
-- something takes a cookie only from pages that may (origins.lua): another site could make a browser send it.

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
      if changes_something(headers) and not comes_from_allowed_page(headers) then
        return handle:respond({ [":status"] = "403" }, "")
      end
      return headers:replace("authorization", "Bearer " .. token)
    end
  end
end
