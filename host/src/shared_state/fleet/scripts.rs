//! The scripts that make operations atomic on the server. Each returns a code, and the result behind it.

use std::sync::LazyLock;

use redis::Script;

use crate::shared_state::SharedError;

/// Returns the value of a key. A value that others have stored may be of any length: it is not even read then.
pub static GET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local kind = redis.call('TYPE', KEYS[1]).ok\n\
         if kind == 'none' then return {0, false} end\n\
         if kind ~= 'string' or redis.call('STRLEN', KEYS[1]) > tonumber(ARGV[1]) then return {1, false} end\n\
         return {0, redis.call('GET', KEYS[1])}",
    )
});

/// Adds to a counter. The sum is returned as text, since numbers of scripts have 53 bits.
pub static ADD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local kind = redis.call('TYPE', KEYS[1]).ok\n\
         if kind == 'none' then\n\
           if ARGV[2] == '' then redis.call('SET', KEYS[1], ARGV[1])\n\
           elseif ARGV[2] ~= '0' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end\n\
           return {0, ARGV[1]}\n\
         end\n\
         if kind ~= 'string' then return {1, false} end\n\
         local sum = redis.pcall('INCRBY', KEYS[1], ARGV[1])\n\
         if type(sum) == 'table' then\n\
           if string.find(sum.err, 'overflow') then return {2, false} end\n\
           return {1, false}\n\
         end\n\
         return {0, redis.call('GET', KEYS[1])}",
    )
});

/// Sets a value if the present one is expected.
pub static COMPARE_AND_SWAP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local kind = redis.call('TYPE', KEYS[1]).ok\n\
         if kind == 'none' then\n\
           if ARGV[1] == '1' then return {0, 0} end\n\
         else\n\
           if kind ~= 'string' then return {1, 0} end\n\
           if ARGV[1] == '0' or redis.call('GET', KEYS[1]) ~= ARGV[2] then return {0, 0} end\n\
         end\n\
         if ARGV[4] == '' then redis.call('SET', KEYS[1], ARGV[3])\n\
         elseif ARGV[4] == '0' then redis.call('DEL', KEYS[1])\n\
         else redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4]) end\n\
         return {0, 1}",
    )
});

/// Takes tokens from a bucket: the time at which it is full, in seconds and nanoseconds, because numbers of scripts have
/// too few bits for both. Returns the time in which enough tokens are there, and the time in which the bucket is full.
pub static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local kind = redis.call('TYPE', KEYS[1]).ok\n\
         if kind ~= 'none' and kind ~= 'hash' then return {1, 0, 0} end\n\
         local burst, cost, time = tonumber(ARGV[1]), tonumber(ARGV[2]), redis.call('TIME')\n\
         local seconds, nanoseconds = tonumber(time[1]), tonumber(time[2]) * 1000\n\
         local full, before = redis.call('HMGET', KEYS[1], 's', 'n'), 0\n\
         if kind == 'hash' then\n\
           if not full[1] or not full[2] then return {1, 0, 0} end\n\
           before = (tonumber(full[1]) - seconds) * 1000000000 + tonumber(full[2]) - nanoseconds\n\
           before = math.max(0, math.min(before, burst))\n\
         end\n\
         local missing, used = math.max(0, before + cost - burst), before\n\
         if missing == 0 then used = before + cost end\n\
         if used == 0 then\n\
           if kind == 'hash' then redis.call('DEL', KEYS[1]) end\n\
           return {0, 0, 0}\n\
         end\n\
         local rest = nanoseconds + used % 1000000000\n\
         local whole = seconds + math.floor(used / 1000000000) + math.floor(rest / 1000000000)\n\
         redis.call('HSET', KEYS[1], 's', string.format('%.0f', whole), 'n', string.format('%.0f', rest % 1000000000))\n\
         redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil(used / 1000000)))\n\
         return {0, missing, used}",
    )
});

/// Returns the error for the code of a script.
pub fn checked(code: i64) -> Result<(), SharedError> {
    match code {
        0 => Ok(()),
        1 => Err(SharedError::OtherKind),
        2 => Err(SharedError::Overflow),
        _ => Err(SharedError::Unavailable),
    }
}

/// Returns the pattern of all keys with a beginning.
pub fn pattern(beginning: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(beginning.len() + 1);
    for byte in beginning {
        if b"*?[]^-\\".contains(byte) {
            pattern.push(b'\\');
        }
        pattern.push(*byte);
    }
    pattern.push(b'*');
    pattern
}
