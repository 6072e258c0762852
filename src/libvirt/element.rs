//! An element that is to be in a document: it is written there, or looked for.

use std::fmt::Write;

use roxmltree::Node;

/// The namespace of an element, and the prefix that it is given where none is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Namespace {
    uri: &'static str,
    prefix: &'static str,
}

/// One element, with its attributes and children. Text is in attributes only, as libvirt has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    namespace: Option<Namespace>,
    name: &'static str,
    /// The attribute that tells it from its like; None where there is one of its name.
    key: Option<&'static str>,
    /// In the order in which they are written.
    pub(super) attributes: Vec<(&'static str, String)>,
    pub(super) children: Vec<Element>,
}

impl Element {
    /// An empty one.
    pub fn new(name: &'static str) -> Self {
        Self { namespace: None, name, key: None, attributes: Vec::new(), children: Vec::new() }
    }

    /// An empty one in a namespace.
    pub fn of(uri: &'static str, prefix: &'static str, name: &'static str) -> Self {
        Self { namespace: Some(Namespace { uri, prefix }), ..Self::new(name) }
    }

    /// With the attribute that tells it from others of its name.
    #[must_use]
    pub fn keyed(self, name: &'static str, value: impl Into<String>) -> Self {
        Self { key: Some(name), ..self.with(name, value) }
    }

    /// With an attribute.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// With an attribute, if there is a value.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// With a child.
    #[must_use]
    pub fn child(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether an element of a document is among those below.
    pub(super) fn contains(&self, node: Node<'_, '_>) -> bool {
        self.children.iter().any(|child| child.is_same_as(node) || child.contains(node))
    }

    /// Whether it is this element of a document that is meant.
    pub(super) fn is_same_as(&self, node: Node<'_, '_>) -> bool {
        let named = node.is_element()
            && node.tag_name().name() == self.name
            && node.tag_name().namespace() == self.namespace.map(|namespace| namespace.uri);
        let key = |name| self.attributes.iter().find(|(present, _)| *present == name);
        named
            && self
                .key
                .and_then(key)
                .is_none_or(|(name, value)| node.attribute(*name) == Some(value.as_str()))
    }

    /// The element's XML; lines after the first have this indentation. `prefix` gives the prefixes
    /// that namespaces have at its place; other namespaces are declared.
    pub(super) fn text(&self, indent: &str, prefix: &dyn Fn(&str) -> Option<String>) -> String {
        let (mut name, mut declaration) = (self.name.to_owned(), String::new());
        let mut declared = None;
        if let Some(Namespace { uri, prefix: own }) = self.namespace {
            let known = prefix(uri);
            if known.is_none() {
                declaration = format!(" xmlns:{own}='{}'", escaped(uri));
                declared = Some((uri, own));
            }
            name = format!("{}:{name}", known.as_deref().unwrap_or(own));
        }
        let mut text = format!("<{name}{declaration}");
        for (name, value) in &self.attributes {
            // Writing to a String cannot fail.
            let _ = write!(text, " {name}='{}'", escaped(value));
        }
        if self.children.is_empty() {
            return text + "/>";
        }
        let inside = |uri: &str| match declared {
            Some((known, own)) if known == uri => Some(own.to_owned()),
            _ => prefix(uri),
        };
        text.push('>');
        let inner = format!("{indent}  ");
        for child in &self.children {
            let _ = write!(text, "\n{inner}{}", child.text(&inner, &inside));
        }
        let _ = write!(text, "\n{indent}</{name}>");
        text
    }
}

/// Escapes the characters that a value in quotes of either kind cannot hold (XML 1.0, 2.4 and
/// 3.3.3).
pub(super) fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for letter in value.chars() {
        match letter {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '\'' => text.push_str("&apos;"),
            '"' => text.push_str("&quot;"),
            '\n' | '\r' | '\t' => {
                let _ = write!(text, "&#{};", u32::from(letter));
            }
            _ => text.push(letter),
        }
    }
    text
}
