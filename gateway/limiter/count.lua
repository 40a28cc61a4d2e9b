-- Counts calls, each in all of its windows or in none. A window is a list of the times of the calls in it, the newest first;
-- the time is Redis' own, so that the clocks of edges do not matter. ARGV: of each call the number of its windows, then of
-- each window its length in microseconds and its calls; KEYS: the windows' lists in the same order. Answers of each window:
-- 1 if it was full, what is left of it, and microseconds until more is.
local time = redis.call("TIME")
local now = time[1] * 1000000 + time[2]
local answer = {}
local key, at = 0, 1

-- Drops the times that have left the window; how many are in it.
local function used(list, length)
  while true do
    local oldest = redis.call("LINDEX", list, -1)
    if not oldest or now - oldest < length then
      return redis.call("LLEN", list)
    end
    redis.call("RPOP", list)
  end
end

local function until_more(list, length, calls, count)
  if count == 0 then
    return length
  end
  -- Of a full window the time that has to go first; there are more than `calls` after the limit was lowered.
  return length - (now - redis.call("LINDEX", list, count >= calls and calls - 1 or -1))
end

while at <= #ARGV do
  local windows = tonumber(ARGV[at])
  local is_full = false
  local found = {}
  for i = 1, windows do
    local list, length, calls = KEYS[key + i], tonumber(ARGV[at + 2 * i - 1]), tonumber(ARGV[at + 2 * i])
    local count = used(list, length)
    found[i] = { list, length, calls, count, until_more(list, length, calls, count) }
    is_full = is_full or count >= calls
  end
  for _, one in ipairs(found) do
    local list, length, calls, count, wait = unpack(one)
    if not is_full then
      redis.call("LPUSH", list, string.format("%.0f", now))
      redis.call("PEXPIRE", list, math.ceil(length / 1000))
      count = count + 1
    end
    answer[#answer + 1] = (is_full and count >= calls) and 1 or 0
    answer[#answer + 1] = math.max(0, calls - count)
    answer[#answer + 1] = wait
  end
  key = key + windows
  at = at + 1 + 2 * windows
end
return answer
