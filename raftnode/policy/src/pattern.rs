//! Names with wildcards.

/// A name, in which `*` stands for any characters, also none, and `?` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(String);

impl Pattern {
    /// Takes what can match the name of a certificate: letters, digits, `.`, `_` and `-`, and the
    /// wildcards.
    pub fn new(text: &str) -> Result<Pattern, String> {
        let known = |c: char| c.is_ascii_alphanumeric() || "._-*?".contains(c);
        match text.chars().find(|c| !known(*c)) {
            _ if text.is_empty() => Err("a name cannot be empty; \"*\" is everybody".into()),
            Some(bad) => Err(format!(
                "{text:?} holds {bad:?}: names have letters, digits and . _ - (and here * and ?)"
            )),
            None => Ok(Pattern(text.to_owned())),
        }
    }

    /// Whether the whole of `name` fits.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // After the last star, and where in the name it was tried last.
        let mut retry: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p + 1, n));
                    p += 1;
                }
                Some(c) if *c == b'?' || *c == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match &mut retry {
                    Some((after, from)) => {
                        *from += 1;
                        (p, n) = (*after, *from);
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|c| *c == b'*')
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// By the definition, one case for each kind of character.
    fn reference(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((b'*', rest)), None) => reference(rest, name),
            (Some((b'*', rest)), Some((_, tail))) => reference(rest, name) || reference(pattern, tail),
            (Some(_), None) => false,
            (Some((p, rest)), Some((n, tail))) => (*p == b'?' || p == n) && reference(rest, tail),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn names_fit_as_defined(pattern in "[ab?*]{1,7}", name in "[ab]{0,8}") {
            let expected = reference(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(Pattern::new(&pattern).unwrap().matches(&name), expected, "{} {}", pattern, name);
        }
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        let pattern = Pattern::new(&"a*".repeat(200)).unwrap();
        assert!(!pattern.matches(&("a".repeat(63) + "b")));
    }

    #[test]
    fn what_no_certificate_can_carry_is_no_pattern() {
        for bad in ["", "a b", "web/1", "@", "ü"] {
            assert!(Pattern::new(bad).is_err(), "{bad:?}");
        }
    }
}
