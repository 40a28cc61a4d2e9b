-- Runs only on routes of streams that are answered as SSE, outside the transcoder, which has written `data: {json}` frames.
-- It puts `id: <sequence>` before the data of an event that has a sequence, and turns a heartbeat into a comment. Each chunk
-- goes on as soon as it was looked at; a frame that came in two chunks is put together first. Invariant: JSON holds no raw
-- line feed, so that a line feed before `data:` is always the start of a frame. Where the service says that there is nothing
-- any more, the answer is 204 (finished.lua stands in front of this).

local function frame(text)
  if string.find(text, '^data: {"sequence":0,"heartbeat":{}}') then
    return ": heartbeat\n\n"
  end
  local sequence = string.match(text, '^data: {"sequence":(%d+)')
  if sequence and sequence ~= "0" then
    return "id: " .. sequence .. "\n" .. text
  end
  return text
end

function envoy_on_response(handle)
  if finish(handle) then
    return
  end
  local kind = handle:headers():get("content-type")
  if kind ~= "text/event-stream" then
    return
  end
  local rest = ""
  for chunk in handle:bodyChunks() do
    local size = chunk:length()
    local text = rest .. (size > 0 and chunk:getBytes(0, size) or "")
    local frames = {}
    local from = 1
    while true do
      local _, last = string.find(text, "\n\n", from, true)
      if not last then
        break
      end
      frames[#frames + 1] = frame(string.sub(text, from, last))
      from = last + 1
    end
    rest = string.sub(text, from)
    chunk:setBytes(table.concat(frames))
  end
end
