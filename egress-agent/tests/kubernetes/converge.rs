//! Placeholder for the property.
