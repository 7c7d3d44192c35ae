//! Values that Envoy keeps with a request, for other filters and for the access log.

use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::{
    Key, Value,
};
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use envoy_types::pb::envoy::extensions::filters::http::set_filter_state::v3 as set_filter_state;
use envoy_types::pb::google::protobuf::Any;

use super::pb::{any, text_format};

/// A filter that sets these as a request comes by. What it is given for a route it sets as well,
/// after its own.
pub(super) fn filter_state(values: Vec<FilterStateValue>) -> Any {
    any(set_filter_state::Config {
        on_request_headers: values,
        ..set_filter_state::Config::default()
    })
}

/// `text` may have command operators. Without a factory the key is one that Envoy knows itself.
pub(super) fn value(key: &str, factory: &str, text: &str) -> FilterStateValue {
    FilterStateValue {
        factory_key: factory.to_owned(),
        key: Some(Key::ObjectKey(key.to_owned())),
        value: Some(Value::FormatString(text_format(text))),
        ..FilterStateValue::default()
    }
}
