//! Numbers as people read them.

/// At most five characters: exact below 10,000, then three digits and k, M, G, T, P or E (powers of 1000).
pub fn short(number: u64) -> String {
    if number < 10_000 {
        return number.to_string();
    }
    let (mut value, mut unit) = (number as f64, 0);
    // 999.5 would be rounded to a fourth digit.
    while value >= 999.5 {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", ["", "k", "M", "G", "T", "P", "E"][unit])
}

/// Seconds as `ipvsadm -Lc` shows them, minutes and seconds: `14:58`.
pub fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

/// Seconds as `3d 4h`, `2h 5m`, `7m 12s` or `9s`.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_number_has_at_most_five_characters_and_three_digits() {
        for (number, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (12_345, "12.3k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (1_234_567, "1.23M"),
            (9_995_000, "10.0M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(short(number), text);
        }
    }

    #[test]
    fn durations_name_their_two_largest_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3599, "59m 59s"), (7500, "2h 5m"), (90_000, "1d 1h")]
        {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(clock(898), "14:58");
        assert_eq!(clock(7200), "120:00");
    }
}
