//! The query of a request, and the pages of a list.

use super::refusal::Refusal;
use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;
use url::form_urlencoded;

/// The most items that one page of Key Vault has, and the number where the client names none.
const LONGEST_PAGE: usize = 25;

/// The query parameters that mean something.
#[derive(Debug, Default)]
pub struct Query {
    api_version: Option<String>,
    max_results: Option<String>,
    skip_token: Option<String>,
}

/// One page.
#[derive(Debug)]
pub struct Page {
    /// What it holds.
    pub items: Vec<Value>,
    /// Where the next one starts.
    pub next: Option<String>,
}

impl Query {
    /// Takes the parameters out of a query string.
    pub fn parse(query: Option<&str>) -> Self {
        let mut parsed = Self::default();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match name.to_ascii_lowercase().as_str() {
                "api-version" => parsed.api_version = Some(value.into_owned()),
                "maxresults" => parsed.max_results = Some(value.into_owned()),
                "$skiptoken" => parsed.skip_token = Some(value.into_owned()),
                _ => {}
            }
        }
        parsed
    }

    /// Whether the API version is one that the real service has: 7.0 to 7.6, and since then dates.
    ///
    /// # Errors
    /// 400 where it is missing or unknown.
    pub fn check_version(&self) -> Result<(), Refusal> {
        let version = self.api_version.as_deref().filter(|version| !version.is_empty());
        let version = version.ok_or_else(|| Refusal::bad_parameter("api-version must be specified"))?;
        let numbered = version.strip_prefix("7.").and_then(|minor| minor.parse::<u32>().ok());
        let dated = version.trim_end_matches("-preview");
        let dated = dated.len() == 10 && dated.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        if numbered.is_some_and(|minor| minor <= 6) || dated || version.ends_with("-preview") {
            return Ok(());
        }
        Err(Refusal::bad_parameter(format!("The specified version ({version}) is not recognized.")))
    }

    /// The page that the query asks for, of items that are sorted by their names.
    ///
    /// # Errors
    /// 400 where the length or the token is not one.
    pub fn page(&self, items: Vec<(String, Value)>) -> Result<Page, Refusal> {
        let length = match &self.max_results {
            None => LONGEST_PAGE,
            Some(text) => text
                .parse()
                .ok()
                .filter(|length| (1..=LONGEST_PAGE).contains(length))
                .ok_or_else(|| Refusal::bad_parameter("maxresults has to be between 1 and 25"))?,
        };
        let after = match &self.skip_token {
            None => String::new(),
            Some(token) => BASE64URL_NOPAD
                .decode(token.as_bytes())
                .ok()
                .and_then(|name| String::from_utf8(name).ok())
                .ok_or_else(|| Refusal::bad_parameter("$skiptoken is not one of this vault"))?,
        };
        let mut rest = items.into_iter().filter(|(name, _)| *name > after).peekable();
        let mut page = Page { items: Vec::new(), next: None };
        for (name, item) in rest.by_ref().take(length) {
            page.items.push(item);
            page.next = Some(name);
        }
        if rest.peek().is_none() {
            page.next = None;
        }
        Ok(page)
    }

    /// The query of the next page.
    pub fn next(&self, after: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("api-version", self.api_version.as_deref().unwrap_or_default());
        query.append_pair("$skiptoken", &BASE64URL_NOPAD.encode(after.as_bytes()));
        if let Some(length) = &self.max_results {
            query.append_pair("maxresults", length);
        }
        query.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_together_hold_every_item_once() -> Result<(), Refusal> {
        let items: Vec<_> = (0..53).map(|n| (format!("k{n:02}"), Value::from(n))).collect();
        for (query, pages) in [("api-version=7.6", 3), ("maxresults=7", 8), ("maxresults=25", 3), ("maxresults=1", 53)]
        {
            let (mut seen, mut count, mut query) = (Vec::new(), 0, query.to_owned());
            loop {
                let parsed = Query::parse(Some(&query));
                let page = parsed.page(items.clone())?;
                seen.extend(page.items);
                count += 1;
                match page.next {
                    Some(after) => query = parsed.next(&after),
                    None => break,
                }
            }
            assert_eq!((seen.len(), count), (53, pages));
            assert!(seen.iter().zip(0..).all(|(item, n)| *item == n));
        }
        Ok(())
    }

    #[test]
    fn a_version_that_the_service_never_had_is_refused() {
        for (query, good) in [
            ("api-version=7.6", true),
            ("API-Version=2026-04-01", true),
            ("api-version=7.7-preview.1-preview", true),
            ("", false),
            ("api-version=", false),
            ("api-version=7.7", false),
            ("api-version=1", false),
        ] {
            assert_eq!(Query::parse(Some(query)).check_version().is_ok(), good, "{query}");
        }
    }
}
