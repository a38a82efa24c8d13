-- Plays requests that were signed beforehand: each once, in order, from the file that PLANT_REQUESTS names.
local requests, at = {}, 0

function init(args)
    local file = assert(io.open(os.getenv("PLANT_REQUESTS"), "rb"))
    while true do
        local length = file:read("*l")
        if not length then break end
        requests[#requests + 1] = file:read(tonumber(length))
    end
    file:close()
end

function request()
    at = at % #requests + 1
    return requests[at]
end

function done(summary, latency, _)
    io.stderr:write(string.format(
        '{"requests":%d,"duration_us":%d,"socket_errors":%d,"refused":%d,' ..
        '"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d}\n',
        summary.requests, summary.duration,
        summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
        summary.errors.status,
        latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
