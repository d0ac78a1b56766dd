-- Goes round in a plan of ready requests (requests.py), and says what came of it as one line of JSON.

local requests, count, turn = {}, 0, 0

function init(args)
  local lengths = assert(io.open(args[1] .. ".lengths", "r"))
  local blob = assert(io.open(args[1] .. ".requests", "rb"))
  for line in lengths:lines() do
    count = count + 1
    requests[count] = blob:read(tonumber(line))
  end
  lengths:close()
  blob:close()
end

function request()
  turn = turn % count + 1
  return requests[turn]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%.6f,"p50_us":%.1f,"p99_us":%.1f,"p999_us":%.1f,"max_us":%.1f,' ..
    '"refused":%d,"errors":%d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
