-- Stands in front of the scripts that take what a browser sends by itself: a cookie, or a password that it keeps. Another
-- site's page can make it send those too, so what changes something needs to say which page it comes from, and browsers do.
-- ALLOWED_ORIGINS, set in front of this, holds the listed origins; the edge's own needs no listing.
local READS = { GET = true, HEAD = true, OPTIONS = true }

local function is_own(origin, headers)
  local scheme, host = string.match(origin, "^(https?)://([^/]+)$")
  local authority = headers:get(":authority") or ""
  -- Behind a proxy that ends TLS the edge sees http, and pages come from https.
  local is_downgrade = scheme == "http" and headers:get("x-forwarded-proto") == "https"
  return host ~= nil and string.lower(host) == string.lower(authority) and not is_downgrade
end

-- Whether a page that may do so sent this. Without Origin the browser's word that page and edge are one site is enough.
local function comes_from_allowed_page(headers)
  local origin = headers:get("origin")
  local relation = headers:get("sec-fetch-site")
  if not origin then
    return relation == "same-origin"
  end
  if ALLOWED_ORIGINS[origin] then
    return true
  end
  return is_own(origin, headers) and (relation == nil or relation == "same-origin")
end

local function changes_something(headers)
  return not READS[headers:get(":method")]
end
