-- Prints what wrk measured as one line of JSON. Only done() is defined, so requests are still sent from wrk's
-- fixed buffer and responses are not given to Lua: the load is that of wrk without a script.
done = function(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      '{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "longest": %d, ' ..
      '"refused": %d, "failed": %d}\n',
      summary.requests, summary.duration,
      latency:percentile(50), latency:percentile(99), latency.max,
      e.status, e.connect + e.read + e.write + e.timeout))
end
