-- For wrk: sends the requests of a file in turn. A line is a method, a path and perhaps a body.
-- The last line of the output has the number of answers, the seconds, and the number of failures.
local requests, place = {}, 0

function init(arguments)
  for line in io.lines(arguments[1]) do
    local method, path, body = line:match("^(%S+) (%S+) ?(.*)$")
    body = body ~= "" and body or nil
    wrk.headers["Content-Type"] = body and "application/json"
    requests[#requests + 1] = wrk.format(method, path, nil, body)
  end
end

function request()
  place = place % #requests + 1
  return requests[place]
end

function done(summary)
  local errors = summary.errors
  local failures = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(summary.requests, summary.duration / 1e6, failures)
end
