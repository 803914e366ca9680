//! From TOML to a policy, with the place of whatever is wrong.

use std::collections::BTreeMap;
use std::ops::Range;

use quorumfs_api::key::Key;
use quorumfs_api::rights::{Access, POLICY_BYTES_MAX, SYSTEM_DIR};
use serde::Deserialize;
use toml::Spanned;

use crate::pattern::Pattern;
use crate::{Denied, NAME_VARIABLE, Path, Policy, Rule};

/// A client's name that stands in for others when a path with a variable is checked.
const ANY_NAME: &str = "n";

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct PolicyError {
    /// The line, from 1.
    pub line: u32,
    /// The character in it, from 1.
    pub column: u32,
    /// What is wrong there.
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    deny: Vec<Spanned<String>>,
    #[serde(default)]
    groups: BTreeMap<String, Vec<Spanned<String>>>,
    #[serde(default)]
    rule: Vec<RuleTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    who: Vec<Spanned<String>>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    write: Vec<Spanned<String>>,
    #[serde(default)]
    read: Vec<Spanned<String>>,
    #[serde(default)]
    none: Vec<Spanned<String>>,
}

/// The text, to find lines in.
struct Text<'a>(&'a str);

impl Text<'_> {
    /// What stands before byte `at`.
    fn before(&self, at: usize) -> &str {
        let mut at = at.min(self.0.len());
        while !self.0.is_char_boundary(at) {
            at -= 1;
        }
        &self.0[..at]
    }

    fn line(&self, at: usize) -> u32 {
        1 + self.before(at).bytes().filter(|b| *b == b'\n').count() as u32
    }

    fn error(&self, at: &Range<usize>, what: impl Into<String>) -> PolicyError {
        let before = self.before(at.start);
        let line_begins = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = 1 + before[line_begins..].chars().count() as u32;
        PolicyError { line: self.line(at.start), column, what: what.into() }
    }
}

impl Policy {
    /// Checks a policy.
    ///
    /// # Errors
    /// What is wrong first, and where.
    pub fn parse(bytes: &[u8]) -> Result<Policy, PolicyError> {
        if bytes.len() > POLICY_BYTES_MAX {
            let what = format!("the policy has {} bytes; {POLICY_BYTES_MAX} is the most", bytes.len());
            return Err(PolicyError { line: 1, column: 1, what });
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            Text(&valid).error(&(valid.len()..valid.len()), "this is no UTF-8")
        })?;
        let text = Text(text);
        let file: File = toml::from_str(text.0).map_err(|error| {
            let at = error.span().unwrap_or(0..0);
            text.error(&at, error.message().trim_end().replace('\n', "; "))
        })?;
        let groups = groups(&text, file.groups)?;
        let mut denied = Vec::new();
        for name in file.deny {
            let line = text.line(name.span().start);
            denied.extend(who(&text, &groups, &name)?.into_iter().map(|who| Denied { who, line }));
        }
        let rules =
            file.rule.into_iter().map(|table| rule(&text, &groups, table)).collect::<Result<_, _>>()?;
        Ok(Policy { denied, rules })
    }
}

type Groups = BTreeMap<String, Vec<Pattern>>;

fn groups(text: &Text<'_>, tables: BTreeMap<String, Vec<Spanned<String>>>) -> Result<Groups, PolicyError> {
    let mut groups = Groups::new();
    for (group, members) in tables {
        let mut patterns = Vec::new();
        for member in members {
            if member.get_ref().starts_with('@') {
                return Err(text.error(&member.span(), "a group holds names, not other groups"));
            }
            patterns.push(Pattern::new(member.get_ref()).map_err(|why| text.error(&member.span(), why))?);
        }
        groups.insert(group, patterns);
    }
    Ok(groups)
}

/// Those whom a name, a pattern or `@group` means.
fn who(text: &Text<'_>, groups: &Groups, name: &Spanned<String>) -> Result<Vec<Pattern>, PolicyError> {
    let Some(group) = name.get_ref().strip_prefix('@') else {
        let pattern = Pattern::new(name.get_ref()).map_err(|why| text.error(&name.span(), why))?;
        return Ok(vec![pattern]);
    };
    let unknown = || text.error(&name.span(), format!("there is no group {group:?} in [groups]"));
    groups.get(group).cloned().ok_or_else(unknown)
}

fn rule(text: &Text<'_>, groups: &Groups, table: RuleTable) -> Result<Rule, PolicyError> {
    let mut names = Vec::new();
    for name in &table.who {
        names.extend(who(text, groups, name)?);
    }
    let mut paths = Vec::new();
    for (access, given) in
        [(Access::Write, table.write), (Access::Read, table.read), (Access::None, table.none)]
    {
        for path in given {
            paths.push(check_path(text, access, &path)?);
        }
    }
    Ok(Rule { who: names, admin: table.admin, paths })
}

fn check_path(text: &Text<'_>, access: Access, path: &Spanned<String>) -> Result<Path, PolicyError> {
    let written = path.get_ref();
    let error = |what: String| text.error(&path.span(), what);
    let key = Key::parse(written.replace(NAME_VARIABLE, ANY_NAME)).map_err(|why| error(why.to_string()))?;
    let rest = written.replace(NAME_VARIABLE, "");
    if let Some(bad) = rest.chars().find(|c| "{}*".contains(*c)) {
        return Err(error(format!(
            "{written:?} holds {bad:?}: a path stands for all below it, and knows no variable but {NAME_VARIABLE}"
        )));
    }
    if access == Access::Write && key.is_within(&SYSTEM_DIR) {
        return Err(error(format!("only admins write in {}: say admin = true instead", *SYSTEM_DIR)));
    }
    Ok(Path { text: written.clone(), access, line: text.line(path.span().start) })
}
